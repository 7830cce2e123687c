"""The part of the runtime that runs in a process of its own: standard library only, imported by `python -SI`.

serve (the spawner) forks a supervisor per container; the supervisor clones init into new namespaces; init performs the
plan's steps and is PID 1. After `pivot_root` every path is the container's: nothing may be imported from then on.
"""
