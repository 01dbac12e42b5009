"""What the processes do that Ray starts before there is work for them: import the client app.

Ray imports this module in them (`RAY_preload_python_modules`), while the driver still loads its own
model. An app that cannot be imported is told later, by the worker that is asked to load it.
"""

import os

from fedsim.base.imports import importing
from fedsim.engine.worker import load_app

with importing():
    load_app(os.environ["FEDSIM_CLIENT_APP"])  # set by `ray_cluster.connected`
