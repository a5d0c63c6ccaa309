"""Whether lobes and routers still do what they did."""
