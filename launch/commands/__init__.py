"""The commands of `tessera-launch`, one module each; all three prepare the same job and differ in the script."""
