"""From records to a finished set: what is kept, where it goes, and the writing; sets that grow and join."""
