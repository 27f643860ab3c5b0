# Every public key listed under ssh_authorized_keys or public-keys, one a line. Keys of the guest itself
# (`ed25519_public: ssh-ed25519 ...`) are no list items and stay out.
/^[ \t]*-[ \t]/ || /(ssh_authorized_keys|ssh-authorized-keys|public-keys):[ \t]*\[/ {
    rest = $0
    while (match(rest, /(ssh-[a-z0-9]+|ecdsa-sha2-[a-z0-9-]+|sk-[a-z0-9@.-]+) AAAA[A-Za-z0-9+\/=]+( [^"',\]]*)?/)) {
        print substr(rest, RSTART, RLENGTH)
        rest = substr(rest, RSTART + RLENGTH)
    }
}
