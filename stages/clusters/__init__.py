"""Several machines: examples of launch files, and a rehearsal on one."""
