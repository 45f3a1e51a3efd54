"""Operating system and hardware: files, console, signals, devices."""
