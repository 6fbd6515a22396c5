"""What every test here needs; importing it skips the module that does, with the reason."""

import pytest

torch = pytest.importorskip("torch", minversion="2.11")
pytest.importorskip("lightning")
pytest.importorskip("transformers")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)
