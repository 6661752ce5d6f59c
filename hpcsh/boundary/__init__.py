"""How hpcsh touches a target: processes, files and connections on this machine or over SSH."""
