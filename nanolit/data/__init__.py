"""Text and tasks to batches: shards, packing, the pretraining stream and the conversation stream.

Takes parquet shards, conversations, a tokenizer.
Gives the micro-batches of one optimizer step with their position.
May import tokenizer, tasks, machine and torch; never a model or a phase.
"""
