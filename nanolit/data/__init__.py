"""Text and tasks to batches: shards, packing, the pretraining stream and the conversation stream.

Comes in: parquet shards, conversations, a tokenizer. Goes out: the
micro-batches of one optimizer step with their position.
May import tokenizer, tasks, machine, torch; never a model or a phase.
"""
