"""`make demo`: the main job walked through on real files against a running suite, each step printed."""
