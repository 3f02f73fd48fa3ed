"""Consoles: displays over VNC, terminals, and the viewer files of SPICE."""
