# The name a seed asks for: `hostname` of user-data (read first) before `local-hostname` of meta-data.
function value(line) { sub(/^[^:]*:[ \t]*/, "", line); gsub(/["'\r]|[ \t]+$/, "", line); return line }
/^hostname:/       { if (name == "") name = value($0) }
/^local-hostname:/ { if (name == "") name = value($0) }
END { print name }
