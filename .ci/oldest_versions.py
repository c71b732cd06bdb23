"""Writes the oldest version that setup.cfg allows of each requirement, as constraints for pip."""

import configparser
import re
import sys

setup = configparser.ConfigParser()
setup.read("setup.cfg")
for requirements in (setup["options"]["install_requires"], *setup["options.extras_require"].values()):
    for requirement in re.findall(r"^\w.*", requirements, re.MULTILINE):
        name, version = re.fullmatch(r"([\w-]+) [>=]= ([\d.*]+)(?:, < [\d.]+)?", requirement).groups()
        sys.stdout.write(f"{name} == {version}\n")
