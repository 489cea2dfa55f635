"""A Modal control plane on loopback: the real client talks to it, and it runs inputs in the real entrypoint.

In come all requests of modal's client and of its containers; out go replies, a log of the requests
(rpc.jsonl), volumes as folders, containers as processes. It executes what it gets: for tests alone.
"""
