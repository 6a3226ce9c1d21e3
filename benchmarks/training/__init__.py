"""The trainer against a plain PEFT loop, against the machine, and under load."""
