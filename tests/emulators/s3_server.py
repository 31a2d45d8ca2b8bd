"""S3 on loopback: moto's server, as a process. Run as ``python s3_server.py FOLDER``; the port is in ``port``."""

import sys
import threading
from pathlib import Path

from moto.server import ThreadedMotoServer


def main(folder: str) -> None:
    served = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    served.start()
    aside = Path(folder) / "port.partial"
    aside.write_text(str(served.get_host_and_port()[1]))
    aside.rename(Path(folder) / "port")
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1])
