# What type checkers see of the names that are imported when they are first used.
from fedllm.api import calibrate as calibrate
from fedllm.api import plan as plan
from fedllm.api import predict as predict
from fedllm.api import report as report
from fedllm.api import resume as resume
from fedllm.api import run as run
from fedllm.settings.experiment import Settings as Settings
from fedllm.settings.io import load_settings as load_settings
from privacy.ledger.ledger import Ledger as Ledger

__version__: str
