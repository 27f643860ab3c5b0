# Turns the lines of network.awk into addresses and routes. Sourced by init; sets $addresses for its last word.
configure_network() {
    addresses=
    for path in /sys/class/net/eth*; do
        [ -d "$path" ] || continue
        nic=${path##*/}
        read -r mac <"$path/address"
        if [ ! -s /run/network ]; then
            by_dhcp "$nic" "$1"
            continue
        fi
        while read -r id want_mac want_name dhcp want_addresses routes; do
            [ "$want_mac" = - ] || [ "$want_mac" = "$mac" ] || continue
            if [ "$want_name" != - ]; then
                # shellcheck disable=SC2254  # the name is a pattern by its definition
                case $nic in $want_name) ;; *) continue ;; esac
            elif [ "$want_mac" = - ] && [ "$id" != "$nic" ]; then
                continue
            fi
            [ "$want_addresses" = - ] || by_hand "$nic" "$want_addresses" "$routes"
            case $dhcp$want_addresses in true* | yes* | --) by_dhcp "$nic" "$1" ;; esac
            break
        done </run/network
    done
    addresses=${addresses:-none}
}
by_hand() {
    ip link set "$1" up
    for address in $(echo "$2" | tr , ' '); do
        ip addr add "$address" dev "$1" 2>/dev/null && addresses="${addresses:+$addresses,}$address"
    done
    [ "$3" = - ] || for route in $(echo "$3" | tr , ' '); do
        ip route add "${route%%>*}" via "${route#*>}" dev "$1"
    done
}
by_dhcp() {
    ip link set "$1" up
    addresses="${addresses:+$addresses,}dhcp"
    udhcpc -b -S -i "$1" -x "hostname:$2" -s /sbin/dhcp-lease >/dev/null 2>&1 &
}
