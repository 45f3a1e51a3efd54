"""What the process needs from its machine: files, console, signals, devices."""
