"""The whole MTA in one process, on a simulated disk, network, name service and clock: a seed reproduces a run."""
