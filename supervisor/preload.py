"""Loaded into the fork server only, before the application: readies it to be the template of all children."""

import gc
import os

# Signals that a terminal or a service manager sends to our whole process group are meant for the supervisor,
# which then decides when children end. The fork server must outlive them, for children die with it.
os.setsid()
# What is loaded here is shared with every child for as long as nobody touches it.
gc.freeze()
