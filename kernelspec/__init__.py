"""Jupyter kernels that run in containers: the provisioner, the launcher for front ends without provisioners, kernelspecs."""
