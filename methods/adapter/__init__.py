"""Which weights are trained: `adapter=`."""
