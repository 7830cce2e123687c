"""The inside half of a session: runs cells in whatever Python (3.6 or newer) an image has. Standard library only.

Its directory is mounted read-only into the container and started with the number of an inherited socket. What travels there, both
ways, are frames. What a cell prints goes to the ordinary stdout and stderr; before it changes from one to the other, and with every
display, the runner waits until the host has shown what came before. The host believes nothing of what comes from here: a program
that writes to the socket spoils its own result only.
"""
