import logging
import os

import pytest


# before anything imports transformers: nothing is downloaded, nothing is reported
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["TQDM_DISABLE"] = "1"


@pytest.fixture
def transformers_log(caplog):
    """What transformers logs, which does not reach the root logger."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
