"""What the tests share: real servers and processes, and a guard that keeps everything on this machine."""
