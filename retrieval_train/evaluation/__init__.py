"""From embeddings to a report: index, search, metrics, baselines, page. The only place that imports FAISS."""
