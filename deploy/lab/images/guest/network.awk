# network-config version 2 -> one line per interface: "id mac name dhcp addresses routes", "-" where absent.
# Reads the block style YAML emitters write and inline [lists]; indentation alone decides what belongs where.
function bare(text) { gsub(/[]['"\r\t ]/, "", text); return text }
function plain(text) { return text == "" ? "-" : text }
function note_route() {
    if (to != "" && via != "") { routes = routes (routes == "" ? "" : ",") to ">" via; to = ""; via = "" }
}
function property(key, text) {
    if (section == "match" && key == "macaddress") mac = tolower(text)
    if (section == "match" && key == "name") name = text
    if (section == "dhcp4" && key == "dhcp4") dhcp = text
    if (section == "gateway4" && key == "gateway4" && text != "") routes = routes (routes == "" ? "" : ",") "default>" text
    if (section == "addresses" && text != "") addresses = addresses (addresses == "" ? "" : ",") text
    if (section == "routes" && key == "to") to = (text == "0.0.0.0/0") ? "default" : text
    if (section == "routes" && key == "via") via = text
    note_route()
}
function finish() {
    if (id != "") print id, plain(mac), plain(name), plain(dhcp), plain(addresses), plain(routes)
    id = mac = name = dhcp = addresses = routes = to = via = section = ""
}
/^[ \t]*(#|$)/ { next }
{
    match($0, /^ */); depth = RLENGTH
    text = substr($0, depth + 1)
    item = (text ~ /^- ?/)
    if (item) { sub(/^- */, "", text); if (section == "routes") to = via = "" }
    # a colon inside a MAC or IPv6 address is followed by no blank
    if (match(text, /:([ \t]|$)/)) { key = bare(substr(text, 1, RSTART - 1)); rest = bare(substr(text, RSTART + 1)) }
    else { key = ""; rest = bare(text) }
}
key == "ethernets" { inside = depth; ids = props = -1; within = 1; next }
!within { next }
!item && depth <= inside { finish(); within = 0; next }
!item && (ids < 0 || depth == ids) { finish(); ids = depth; id = key; props = -1; next }
!item && (props < 0 || depth == props) { props = depth; section = key }
{ property(key, rest) }
END { finish() }
