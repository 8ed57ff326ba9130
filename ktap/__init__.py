"""ktap: a dynamic tracer for Linux."""
