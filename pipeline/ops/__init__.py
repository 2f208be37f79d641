"""Operations on a store: status, pruning, backup, and the queries of the gallery."""
