"""Systems outside the service: the blob folder and the disk image inspectors."""
