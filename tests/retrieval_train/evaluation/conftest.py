import faiss
import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Cores are shared, and an idle second OpenMP thread costs more than it brings on small inputs."""
    faiss.omp_set_num_threads(1)
