"""How much CPU one DNS query costs, side by side with other resolvers on the same machine in the same minutes.

Everything happens in network namespaces that end with the benchmark. What is measured is the user and system time that
the kernel charged to the peer's processes, divided by the queries answered; the load generator and the upstream are not
counted. Repeats are interleaved, so that whatever else the machine does falls on all peers alike, and ratios are
taken within a repeat before their median is. Run it with `make bench`.
"""
