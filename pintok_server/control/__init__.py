"""The control process: configuration, supervision of the datapath, metrics, health, host checks."""
