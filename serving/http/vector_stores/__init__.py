"""OpenAI's vector-store and file API over the library of corpora."""
