"""The index of a corpus: searched by FAISS, saved beside the documents, current in memory."""
