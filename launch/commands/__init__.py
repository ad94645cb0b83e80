"""The commands of `tessera-launch`, one module each; those that train prepare the same job and differ in the script."""
