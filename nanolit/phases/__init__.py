"""The loss, the data and the evaluation of each stage: one file a phase, over one shared core.

Takes a job, a stage's plan, a model and a tokenizer (core.Inputs).
Gives a LightningModule, the stream of its steps, and its evaluator; training gives losses and the model.
May import config, planning, data, evaluation, inference, model, optim, tokenizer, tasks, machine and
lightning; never callbacks or jobs.
"""
