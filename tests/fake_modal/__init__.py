"""A Modal control plane on loopback: the real client talks to it, and it runs inputs in the real entrypoint.

What comes in is every request of modal's client and of its containers; what goes out is their replies, a log of all
requests (rpc.jsonl), volumes as folders, containers as processes. It executes what it gets: for tests alone.
"""
