"""Services on KServe: what to ask for, and what has become of it. No input or output; the hook does that."""
