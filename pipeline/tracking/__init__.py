"""What a run tells the world: an fsynced journal, its replay into MLflow, the model registry, gates and reports."""
