"""A Proxmox VE cluster in one process, over real HTTPS: the lab that Telar runs on without hardware."""
