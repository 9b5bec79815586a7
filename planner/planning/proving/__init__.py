"""The proof of a plan: replay it, learn how full its replicas may be, plan again, until the replay holds."""
