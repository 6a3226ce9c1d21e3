"""From files to chunks of tokens: which files, how they are read, how their texts are cut."""
