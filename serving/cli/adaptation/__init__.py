"""The commands that adapt: `mayfly chat` through a server, `mayfly adapt` without one."""
