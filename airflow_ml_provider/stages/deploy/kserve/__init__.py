"""Services on KServe: what to ask for, and what has become of it. Only `inference` speaks to anybody."""
