"""The guest agent: silent until the guest has booted, then as talkative as a freshly installed system."""
