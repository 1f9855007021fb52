"""Slow twins: what the library computes, written as its definition reads, in plain loops."""
