"""What a container may do: capabilities, paths of /proc and /sys, devices, system calls. Tables first."""
