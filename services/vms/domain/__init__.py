"""The rules of virtual machines: what there is, what may follow what, and where a machine fits; pure."""
