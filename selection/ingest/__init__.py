"""From files to chunks of tokens: which files are read, how, and how their texts are split."""
